"""What schemathesis cannot know of messaging: its media types."""

import schemathesis


@schemathesis.serializer("application/vnd.waxwing.v1.pb", "application/vnd.waxwing.v1.json")
def plain_bytes(ctx, value):
    """Whatever was made up, as bytes."""
    return value if isinstance(value, bytes) else str(value).encode()
