"""What self-labelling needs around the labels to be tried at once: images, augmentation and small networks."""
