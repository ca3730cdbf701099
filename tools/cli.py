"""The `evort` command: one subcommand for each tool.

Exit codes: 0 done; 1 the answer is no (files differ, over budget, wrong results); 2 bad usage or bad input; 130
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

import evort
from evort.errors import EvortError

# Name -> (module, what it does). A module has `add_arguments(parser)` and `run(args) -> int`, and its docstring is the
# help's text. (None is named like a module of the standard library, so that `python tools/NAME.py` works.)
COMMANDS = {
    "demo": ("demo", "convert and run the shipped LeNet on 500 digits"),
    "convert": ("convert", "turn an ONNX model into an .etm file"),
    "quantize": ("quantize", "make a model smaller and faster: integers for weights and activations"),
    "train": ("train", "train or fine-tune a float model on arrays"),
    "qat": ("qat", "train an integer model: quantization-aware training"),
    "export": ("export", "write a float model as ONNX"),
    "prune": ("prune", "make weights zero in patterns that kernels skip, or remove channels"),
    "inspect": ("inspection", "show what is in a model: layers, sizes, multiply-adds, memory over time"),
    "check": ("check", "prove that a model runs right on this machine"),
    "run": ("run", "run a model on npz, npy or image files"),
    "bench": ("bench", "measure latency and memory, or hold a model to a memory budget"),
    "profile": ("profiling", "time each operator; write a trace for Perfetto"),
    "tune": ("tune", "time the kernels of each layer on this processor, and keep the best in the file"),
    "diff": ("diff", "say what differs between two .etm files"),
    "operators": ("operators", "list the operators that evort runs"),
}

EPILOG = """\
first steps:
  evort demo                                  see it work
  evort convert model.onnx -o model.etm       convert once, offline
  evort quantize model.onnx -o model.etm --scheme static --calib calib.npz
                                              in 8-bit integers
  evort inspect model.etm --memory            where the memory goes
  evort run model.etm -i image.png -o out.npz run it
  evort bench model.etm --threads 1,2         how fast it is
  evort tune model.etm -o model.etm           on the device: the fastest kernel of each layer

in Python:
  import evort
  session = evort.load("model.etm")
  outputs = session.run({"input": array})
"""


class _Config(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        evort.show_config()
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line's parser, all subcommands included."""
    top = argparse.ArgumentParser(
        prog="evort",
        description="A tiny neural-network runtime: convert ONNX models to .etm, look at them, run and measure them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"evort {evort.__version__}")
    top.add_argument("--config", action=_Config, nargs=0, help="show versions, instruction sets, processors")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text) in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = parser().parse_known_args(argv)
    return run_command(args.command, rest)


def run_command(name: str, argv: list[str] | None = None) -> int:
    """Runs the command of one module, as `evort NAME` and `python tools/NAME.py` do."""
    try:
        module = import_module(f"evort_tools.{COMMANDS[name][0]}")
        command = argparse.ArgumentParser(
            prog=f"evort {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        args = command.parse_args(argv)
        return module.run(args)
    except (EvortError, OSError, ValueError) as error:
        print(f"evort {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except ImportError as error:
        print(f"evort {name}: {error}\nInstall what the tools need: pip install 'evort[tools]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
