"""The run-time type checker of the tests: jaxtyping shapes, and an int passes where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
