"""The wire's models by resource, and what the description (/openapi.json) says of values that are passed on as such.

The API answers events, plans and results without reading them, for that would cost time at each request. Models with
the base `Described` describe such values and are used for nothing else: a test compares them with what real runs give.
"""
