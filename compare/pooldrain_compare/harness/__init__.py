"""What every suite stands on: starts services and databases, asks and hurts them; judges nothing, knows no scenario."""
