"""The page: its template, its style, and the script that draws its charts."""
