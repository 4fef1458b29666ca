-- The image of PostgreSQL creates `mlflow` and runs this file once, on an empty volume.
CREATE DATABASE mlflow_auth;
