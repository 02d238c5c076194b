JUDGED = {}
