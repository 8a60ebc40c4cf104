"""`aibrix-batch`: the commands and their flags. What a command does is imported when it runs, so that --help is fast."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import exits

if TYPE_CHECKING:
    from services.kit.settings import Settings

app = typer.Typer(
    name="aibrix-batch",
    help="Self-hosted, OpenAI-compatible batch inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
app.add_typer(keys, name="keys")
template = typer.Typer(help="Deployment templates and batch profiles.", no_args_is_help=True)
app.add_typer(template, name="template")


class Role(StrEnum):
    """The names in services.__main__.ROLES; repeated here because importing that takes longer than --help may."""

    CONSOLE = "console"
    METADATA = "metadata"
    PLANNER = "planner"
    RUNNER = "runner"
    GATEWAY = "gateway"


class Keeper(StrEnum):
    """The roles that have tables: the names in cli.migrate.URLS."""

    METADATA = "metadata"
    PLANNER = "planner"
    CONSOLE = "console"


def main() -> None:
    try:
        app()
    except Exception as error:
        reached = exits.innermost(error)
        if isinstance(reached, (exits.Refused, exits.Failed)):
            print(f"error: {reached}", file=sys.stderr)
            sys.exit(exits.REFUSED if isinstance(reached, exits.Refused) else exits.FAILED)
        raise


def settings() -> Settings:
    """From the environment. Error: Refused, without the value: it may be a secret."""
    from pydantic import ValidationError

    from services.kit.settings import load

    try:
        return load()
    except ValidationError as error:
        lines = [f"AIBRIX_{'__'.join(str(p) for p in e['loc'])}".upper() + f": {e['msg']}" for e in error.errors()]
        raise exits.Refused("; ".join(lines)) from None
    except ValueError as error:
        raise exits.Refused(str(error)) from None


@app.command()
def serve(
    role: Annotated[
        list[Role] | None, typer.Option(help="Run this role by itself; may be repeated. Default: all in one process.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for SQLite and local objects.")] = None,
    host: Annotated[str | None, typer.Option(help="Address of the HTTP server (gateway).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the HTTP server (gateway).")] = None,
    batch: Annotated[
        str | None, typer.Option(help="With --role runner: run this batch with the engine beside it, and end with it.")
    ] = None,
) -> None:
    """Run the server: all roles in one process, or some of them. Flags override the environment."""
    from cli.server import overridden
    from services.__main__ import ROLES
    from services.__main__ import main as run_roles

    if batch is not None:
        if role != [Role("runner")]:
            raise typer.BadParameter("goes with --role runner and no other role", param_hint="--batch")
        raise typer.Exit(_work(batch))
    chosen = overridden(settings(), data_dir=data_dir, host=host, port=port)
    raise typer.Exit(run_roles(chosen, [str(one) for one in role] if role else tuple(ROLES)))


def _work(batch_id: str) -> int:
    """The runner in a KubernetesJob. Its exit code also says that the settings are wrong, which another pod would not mend."""
    from services.runner.worker import Exit, main

    try:
        chosen = settings()
    except exits.Refused as refused:
        typer.echo(f"error: {refused}", err=True)
        return Exit.BAD_CONFIGURATION
    return main(chosen, batch_id)


@app.command("run")
def run_batch(
    input_file: Annotated[Path, typer.Option("--input", "-i", help="JSONL in OpenAI's batch format.")],
    output_file: Annotated[Path, typer.Option("--output", "-o", help="Where the answers go.")],
    base_url: Annotated[str, typer.Option(help="The engine: any OpenAI-compatible server.")],
    model: Annotated[str | None, typer.Option(help="Model of the lines that name none.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(min=1, max=256, help="Most requests in flight.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Such as /v1/embeddings. Default: the first line's url.")] = None,
    error_file: Annotated[
        Path | None, typer.Option(help="Where failed lines go, if there are any. Default: OUTPUT.errors.jsonl")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the engine's key.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command stopped.")] = False,
) -> None:
    """Run one batch file against an engine, without a server. Exit code 0 only if every line succeeded."""
    from cli.order import Order
    from cli.run import run

    order = Order(
        input=input_file,
        output=output_file,
        errors=error_file or output_file.with_name(output_file.name + ".errors.jsonl"),
        base_url=base_url,
        model=model,
        max_concurrency=max_concurrency,
        endpoint=endpoint,
        api_key_env=api_key_env,
    )
    raise typer.Exit(run(order, settings(), resume=resume))


@app.command()
def demo() -> None:
    """Run 1,000 requests through the whole platform and a mock engine on this machine; leaves nothing behind."""
    from cli.demo import run

    raise typer.Exit(run(settings()))


@app.command("demo-real")
def demo_real() -> None:
    """Run 50 questions through the whole platform and a real model on this machine; leaves nothing behind."""
    from cli.demo_real import run

    raise typer.Exit(run(settings()))


@app.command("mock-engine")
def mock_engine(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1.")],
    latency_ms: Annotated[float, typer.Option(min=0, max=3_600_000, help="Time an answer takes.")] = 0.0,
    capacity: Annotated[int | None, typer.Option(min=1, help="Requests at once; more get a 429.")] = None,
    error_rate: Annotated[float, typer.Option(min=0, max=1, help="Part of the requests that get a 500.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Which requests get the 500.")] = 0,
) -> None:
    """Serve an OpenAI-compatible engine whose answers can be checked: for trying out and for tests."""
    from services.runner.engines.mock import main as serve_engine
    from services.runner.engines.options import MockOptions

    options = MockOptions(port=port, latency_ms=latency_ms, capacity=capacity, error_rate=error_rate, seed=seed)
    serve_engine(options, started=lambda url: print(f"mock engine: {url}", flush=True))


@app.command("download-model")
def download_model(
    uri: Annotated[str, typer.Argument(help="s3://BUCKET/FOLDER, or one object.")],
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
) -> None:
    """Download a model from an object store, with the variables of AWS' tools. Exit code 2 if no other try makes it good."""
    from cli.download import download

    raise typer.Exit(download(uri, folder))


@keys.command("new")
def keys_new(
    project: Annotated[str, typer.Option(help="Batches and files belong to a project.")],
    name: Annotated[str, typer.Option(help="Who holds the key.")],
) -> None:
    """Make an API key. The key goes to standard error, once; the line for AIBRIX_API_KEYS_FILE to standard output."""
    from gateway.auth import new_key

    try:
        key, line = new_key(project, name)
    except ValueError:
        raise exits.Refused(
            "a project is letters, digits and ._- (64 at most); a name is 1 to 128 characters"
        ) from None
    print(f"key (shown once): {key}", file=sys.stderr)
    print(line)


@template.command("schema")
def template_schema(
    profile: Annotated[bool, typer.Option("--profile", help="Of a document of batch profiles.")] = False,
) -> None:
    """Print the JSON Schema of a list of templates, as docs/template.schema.json."""
    from cli.template import schema

    print(schema(profile=profile), end="")


@template.command("validate")
def template_validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="YAML or JSON; - is standard input.")],
    profile: Annotated[bool, typer.Option("--profile", help="The files hold batch profiles.")] = False,
) -> None:
    """Print every error with its line. Exit code 1 if there is one, 2 if a file cannot be read; warnings change nothing."""
    from cli.template import validate

    raise typer.Exit(validate(files, profile=profile))


@app.command("settings")
def list_settings() -> None:
    """Print every environment variable with its default, as the table in docs/settings.md."""
    from cli.settings import table

    print(table(), end="")


@app.command()
def health(
    role: Annotated[Role | None, typer.Option(help="Ask this role. Default: whichever listens here.")] = None,
) -> None:
    """Ask the roles of this machine how they are, at their listen addresses. Exit code 0 if they serve."""
    from cli.health import check

    raise typer.Exit(check(settings(), [str(role)] if role else [str(one) for one in Role]))


@app.command()
def migrate(
    role: Annotated[
        list[Keeper] | None, typer.Option(help="Only this role's tables; may be repeated. Default: all.")
    ] = None,
) -> None:
    """Bring the databases to the schema of this version. Roles do it too when they start; only one of all does it."""
    from cli.migrate import migrate as bring_up

    raise typer.Exit(bring_up(settings(), [str(one) for one in role or Keeper]))


@app.command()
def version() -> None:
    """Print the version."""
    from services.kit.release import release

    print(release())
