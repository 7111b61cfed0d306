"""Bytes on disk to state dicts and back: dialects, safe reading, inflation."""
