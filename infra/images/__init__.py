"""Container images: locked requirements, digests of base images, their audit."""
