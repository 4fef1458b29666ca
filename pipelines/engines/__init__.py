"""Where a Beam job runs: this machine, Spark, Dataflow."""
