"""infra/mlflow: compose file, image and configuration name the same things, and the versions of pyproject."""

import configparser
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/mlflow"
COMPOSE = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE)["services"]


def test_variables_are_those_of_the_example() -> None:
    text = (FOLDER / "example.env").read_text(encoding="utf-8")
    known = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z_]+)", COMPOSE)) == set(known)
    assert not any(value for name, value in known.items() if name != "ALLOWED_HOSTS")  # no default password
    assert set(re.findall(r"\$\{([A-Z_]+):-", COMPOSE)) == {"ALLOWED_HOSTS"}  # the others must be set
    assert "/infra/mlflow/.env\n" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_the_server_is_one_with_authentication_database_and_store() -> None:
    configuration = configparser.ConfigParser()
    configuration.read(FOLDER / "basic_auth.ini")
    command = dict(part.partition("=")[::2] for part in SERVICES["mlflow"]["command"])
    assert command["--app-name"] == "basic-auth"
    assert command["--backend-store-uri"] == configuration["mlflow"]["database_uri"].removesuffix("_auth")
    created = re.findall(r"CREATE DATABASE (\w+);", (FOLDER / "databases.sql").read_text(encoding="utf-8"))
    assert configuration["mlflow"]["database_uri"].rpartition("/")[2] in created
    assert command["--artifacts-destination"].startswith(f"s3://{SERVICES['bucket']['entrypoint'][-1]}/")
    assert SERVICES["mlflow"]["environment"]["AWS_ENDPOINT_URL"] == "http://store:7070"
    assert SERVICES["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]


def test_the_image_has_the_versions_of_pyproject() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pins = {pin for every in extras.values() for pin in every}
    installed = set(re.findall(r'(?<=[ "])([a-z0-9-]+(?:\[\w+\])?==[\d.]+)', text))
    assert {"mlflow", "boto3", "flask-wtf", "psycopg[binary]"} == {pin.partition("==")[0] for pin in installed}
    assert installed <= pins
    for name in re.search(r"^COPY (.+) /etc/mlflow/$", text, re.MULTILINE)[1].split():  # type: ignore[index]
        assert (FOLDER / name).is_file()
