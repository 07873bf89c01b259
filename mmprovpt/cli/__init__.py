"""What the tools share: configs, checks before anything is built, runners on any device. Nothing below imports it."""
