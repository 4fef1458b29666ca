"""Names of the runners that this project knows more of than their name."""

LOCAL = "local"
SPARK = "SparkRunner"
DATAFLOW = "DataflowRunner"
