"""From pictures to codes, and pivotal tuning."""
