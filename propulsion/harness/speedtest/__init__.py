"""Speed and memory of a training step against the peers: what is compared, how it is measured, how it is shown."""
