"""The GPU executor: models resident on a device, their steps captured as graphs, draft and target on two streams."""
