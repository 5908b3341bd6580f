"""Methods as compositions of scope, local optimizer, codec, step rule and schedule."""
