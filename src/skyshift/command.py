"""Command lines: a YAML file, typed overrides, and errors that name the nearest known key.

Every command takes ``--config FILE.yaml`` and overrides such as ``--training.steps 500``, and ``--print_config``, which
prints what would run. Configurations are dataclasses; classes are chosen by their path (``class_path`` and
``init_args``), with the package's own ones under their bare name.
"""

import errno
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from skyshift.errors import SkyshiftError
from skyshift.naming import nearest

Config = TypeVar("Config")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class CommandError(SystemExit):
    """A command cannot run as asked; the message has been printed."""


def command(main: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a command print what a person can put right, without a traceback, and leave with status 1."""

    @functools.wraps(main)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return main(*args, **kwargs)
        except SkyshiftError as error:
            print(f"error: {error}", file=sys.stderr)
            raise CommandError(1) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            where = error.filename or "where this command writes"
            print(f"error: no space left at {where} ({error.strerror}); make room and run it again", file=sys.stderr)
            raise CommandError(1) from error
        except KeyboardInterrupt:
            print("interrupted; what is done is kept, the same command goes on from there", file=sys.stderr)
            raise CommandError(130) from None

    return wrapped


def shipped_config(name: str) -> Path:
    """Path of a configuration that ships with the package, ``stage/name.yaml``."""
    with as_file(files("skyshift") / "configs" / name) as path:
        return path


def _all_subclasses(cls: type) -> Iterator[type]:
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield child
        yield from _all_subclasses(child)


class Parser(ArgumentParser):
    """jsonargparse's parser, whose errors name the nearest known key or class."""

    def _known(self, message: str) -> list[str]:
        """Every key, and the parameters of the classes that the message speaks of."""
        keys = [action.dest for action in self._actions if action.dest not in ("help", "print_config")]
        names = [part for key in keys for part in (key, key.rsplit(".", 1)[-1])]
        for path in re.findall(r"class_path='([\w.]+)'", message):
            module, _, cls = path.rpartition(".")
            init = getattr(sys.modules.get(module), cls, object).__init__
            code = getattr(init, "__code__", None)
            names.extend(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount] if code else ())
        return names

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message with the nearest known name and leave with status 2."""
        hint = ""
        patterns = (
            (r"unrecognized arguments: --([\w.]+)", None),
            (r"does not accept (?:option|nested key) '([\w.]+)'", None),
            (r"Option '([\w.]+)' is not accepted", None),
            (r"[Kk]ey '([\w.]+)' is not expected", None),
            (r"dot import path string: ([\w.]+)", "class"),
            (r"(?:Import path|module|class) '?([\w.]+)'? (?:not|could not|does not)", "class"),
            (r"No module named '([\w.]+)'", "class"),
            (r"has no attribute '(\w+)'", "class"),
        )
        for pattern, what in patterns:
            if match := re.search(pattern, message):
                classes = [c.__name__ for c in self._offered() if not c.__name__.startswith("_")]
                known = classes if what else self._known(message)
                name = match.group(1)
                guess = nearest(name, known) or nearest(name.rsplit(".", 1)[-1], known)
                hint = f"\nunknown '{name}'" + (f"; did you mean '{guess}'?" if guess else ".")
                if what:
                    hint += f" Known: {', '.join(sorted(set(classes)))}."
                break
        print(f"{self.prog}: error: {message}{hint}", file=sys.stderr)
        raise CommandError(2)

    offered: tuple[type, ...] = ()

    def _offered(self) -> list[type]:
        return [child for base in self.offered for child in (base, *_all_subclasses(base))]


def make_parser(config_class: type, description: str, offered: Sequence[type] = ()) -> Parser:
    """The parser of a command.

    Args:
        config_class: Dataclass of the whole configuration.
        description: For ``--help``.
        offered: Base classes whose subclasses a configuration may name; for error messages.
    """
    # jsonargparse makes the parsers of nested classes of the same type, so the type knows what is offered.
    kind: type[Parser] = type("Parser", (Parser,), {"offered": tuple(offered)})
    parser = kind(description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(config_class)
    return parser


def parse(
    config_class: type[Config],
    arguments: Sequence[str] | None,
    default_config: str | None,
    description: str,
    offered: Sequence[type] = (),
) -> tuple[Config, dict[str, Any]]:
    """Read a command line into its configuration.

    Args:
        config_class: Dataclass of the whole configuration.
        arguments: The command line's; by default those of the process.
        default_config: Shipped configuration to use when none is named.
        description: For ``--help``.
        offered: Base classes whose subclasses a configuration may name; for error messages.

    Returns:
        The configuration with its objects made, and the same as plain values, to be stored beside the result.

    Raises:
        CommandError: An unknown key, class or value; the message has been printed with the nearest known name.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if default_config and not any(a == "--config" or a.startswith("--config=") for a in arguments):
        arguments = ["--config", str(shipped_config(default_config)), *arguments]
    if default_config:
        description += f" Without --config, configs/{default_config} is taken."
    parser = make_parser(config_class, description, offered)
    namespace = parser.parse_args(arguments)
    made = parser.instantiate(namespace)
    plain = yaml.safe_load(parser.dump(Namespace({k: v for k, v in namespace.items() if k != "config"})))
    plain.pop("config", None)
    values = {key: value for key, value in vars(made).items() if key not in ("config", "__default_config__")}
    return config_class(**values), plain
