"""`python -m hf_amdet` is `hf-amdet`."""

from hf_amdet.cli import main

main()
