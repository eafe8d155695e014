"""Networks of published metrics that transformers does not have, with the names that their published weights use. No torchvision."""
