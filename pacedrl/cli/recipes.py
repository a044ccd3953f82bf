"""``pacedrl recipes``."""

import argparse

HELP = "list the recipes; with a NAME, print its complete configuration"
EXAMPLE = "paced"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe whose configuration is printed")


def run(options: argparse.Namespace) -> int:
    """Print all recipes, or the configuration of one."""
    if options.name is None:
        from pacedrl.recipes import RECIPES

        width = max(map(len, RECIPES))
        for name, recipe in RECIPES.items():
            print(f"{name:<{width}}  {recipe.summary} ({recipe.paper})")
        return 0

    import yaml

    from pacedrl.config import dump_config, parse_config

    print(yaml.safe_dump(dump_config(parse_config({"recipe": options.name})), sort_keys=False), end="")
    return 0
