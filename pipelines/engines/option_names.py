"""Names of Beam's options, by the class that declares them."""

from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser


def option_names(*kinds: type[PipelineOptions]) -> set[str]:
    """Names of all options that these classes declare."""
    parse = _BeamArgumentParser(add_help=False, conflict_handler="resolve")
    for kind in kinds:
        kind._add_argparse_args(parse)
    return {action.dest for action in parse._actions}
