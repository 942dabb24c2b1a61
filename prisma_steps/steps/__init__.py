"""The steps of experiments: one file a step, named as the rule, the function and the YAML word."""
