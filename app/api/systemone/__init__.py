"""System One: typed questions about one state, in the form of the package typesafe-sdk."""
