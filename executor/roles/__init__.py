"""What a draft and a target do for one request, each behind one interface."""
