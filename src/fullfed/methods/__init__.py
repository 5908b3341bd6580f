"""Methods, each put together from scope, local work, codec, aggregation, server step, schedule."""
