"""Sets of images, and the tensors made of them."""
