"""The gateway: keys, limits, sessions and routing in front of engines that speak OpenAI's API."""
