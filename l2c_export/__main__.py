from .cli import l2c

l2c(prog_name="python -m l2c_export")
