"""Plans that an experienced engineer would sign: models on nodes under loads, with the shapes that are acceptable."""
