"""Names of the runners that this project has code for."""

LOCAL = "local"
SPARK = "SparkRunner"
DATAFLOW = "DataflowRunner"
