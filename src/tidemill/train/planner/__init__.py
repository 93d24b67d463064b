"""What a training run will need before it is started: memory, communication and time of every layout. No torch is needed to plan."""
