"""From a configuration to a result dataclass. Nothing here prints."""
