"""Ray: how training is submitted to a cluster, and the manifests of clusters."""
