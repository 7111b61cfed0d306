"""A video file to view tensors: decode, sample, resize, crop, in processes of their own."""
