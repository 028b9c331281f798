"""Files and folders: reading and writing checkpoints, tokenizers and states; finding models by name or on the hub."""
