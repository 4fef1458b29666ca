"""Ray: how training is submitted to a cluster, the manifests of clusters, and the service under Ray Serve."""
