"""`python -m cortexctl`."""

from cortexctl.main import main

main()
