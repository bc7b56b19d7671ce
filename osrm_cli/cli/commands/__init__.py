"""The commands, one module each: they parse, call one public function and print."""
