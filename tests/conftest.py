"""For all tests: nothing reports home, and the libraries are as quiet as in a run."""

from infra.runtime import quiet_environment

quiet_environment()
