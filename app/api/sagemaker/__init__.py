"""SageMaker's route."""
