"""Create the bucket of the MLflow server, if it is not there. Its name is the first argument; the rest is boto3's."""

import sys

import boto3


def main(bucket: str) -> None:
    """Create the bucket."""
    client = boto3.client("s3")
    if bucket not in [entry["Name"] for entry in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)


if __name__ == "__main__":
    main(sys.argv[1])
