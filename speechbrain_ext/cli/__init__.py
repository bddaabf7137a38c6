"""``python -m speechbrain_ext COMMAND``: thin commands over public functions."""

from speechbrain_ext.cli.detect import add_detect
from speechbrain_ext.cli.models import add_models
from speechbrain_ext.cli.profile import add_profile
from speechbrain_ext.cli.scoring import add_scoring
from speechbrain_ext.cli.shards import add_shards
from speechbrain_ext.cli.share import add_share
from speechbrain_ext.cli.voices import add_voices
from speechbrain_ext.utils.command import Parser
from speechbrain_ext.utils.errors import command_line

# In the order of --help. Each module imports what runs only when it runs.
GROUPS = (
    *(add_profile, add_shards, add_scoring, add_share, add_models, add_voices),
    add_detect,
)


@command_line
def main(argv=None):
    """Parse the command and run it."""
    parser = Parser(prog="python -m speechbrain_ext", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_group in GROUPS:
        add_group(commands)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)
