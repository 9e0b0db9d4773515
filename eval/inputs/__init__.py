"""Files of others: predictions in many formats, tables of answers, boxes of a detector."""
