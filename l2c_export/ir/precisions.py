"""The precision that is not one type of all products, by its name; without numpy, which the command line does not wait for."""

FP8 = "fp8"  # bf16 whose sublayers multiply in e4m3
