"""What nodes offer: GPU classes, tensor-parallel groups, pools of equal nodes."""
