"""Training on CIFAR, or any folder of images, with every epoch recorded."""
