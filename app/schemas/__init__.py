"""What the description (/openapi.json) says of values that the API passes on as they are kept.

The API answers events, plans and results without reading them, for it would cost time at each request. The models here
describe such values and are used for nothing else: a test compares them with what real runs give.
"""
