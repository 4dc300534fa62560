"""Training on CIFAR, or any folder of images, with every epoch recorded."""

from benchmarks.extras import require_benchmarks_extra

require_benchmarks_extra()
