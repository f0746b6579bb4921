"""Which of a node's GPUs a plan gets, and whether every choice the kubelet can make admits one."""
