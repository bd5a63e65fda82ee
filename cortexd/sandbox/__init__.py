"""What a model's sandbox lets through on this machine, tried by units that have the same one."""
