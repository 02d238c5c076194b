"""What each model family is: config.json -> ModelSpec."""
